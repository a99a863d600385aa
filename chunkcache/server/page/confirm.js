// A question before something is deleted.

import { byId } from "./elements.js";

/** True once "Delete" is pressed; false when the dialog is left in any other way. */
export function confirmed(title, text) {
  const dialog = byId("confirm");
  byId("confirm-title").textContent = title;
  byId("confirm-text").textContent = text;
  dialog.returnValue = "";
  return new Promise((resolve) => {
    byId("confirm-no").onclick = () => dialog.close("");
    byId("confirm-yes").onclick = () => dialog.close("yes");
    dialog.onclose = () => resolve(dialog.returnValue === "yes");
    dialog.showModal();
  });
}
