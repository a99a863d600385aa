// The API key: asked for when the server does, kept in this tab's sessionStorage and nowhere else.

import { byId } from "./elements.js";

const NAME = "chunkcache-key";
let asking = null;

export const storedKey = () => sessionStorage.getItem(NAME);

export function forgetKey() {
  sessionStorage.removeItem(NAME);
  byId("forget-key").hidden = true;
}

/** Asks for a key, once for all who wait for one. False: the person does not want to give one. */
export function askForKey(why) {
  asking ??= ask(why).finally(() => {
    asking = null;
  });
  return asking;
}

function ask(why) {
  const dialog = byId("key");
  const field = byId("key-value");
  byId("key-why").textContent = `${why} The key stays in this tab until you close it.`;
  field.value = "";
  dialog.returnValue = "";
  return new Promise((resolve) => {
    byId("key-cancel").onclick = () => dialog.close("");
    byId("key-form").onsubmit = () => {
      sessionStorage.setItem(NAME, field.value.trim());
      byId("forget-key").hidden = false;
    };
    dialog.onclose = () => resolve(dialog.returnValue === "given");
    dialog.showModal();
  });
}
