// The vector stores of the tenant, in every section that asks for one.

import { el } from "./elements.js";
import { getJson, path } from "./api.js";

const LIMIT = 100;

/** Fill every list of vector stores again; what was chosen stays chosen. */
export async function refreshStores() {
  const page = await getJson(path(["v1", "vector_stores"], { limit: LIMIT, order: "asc" }));
  for (const select of document.querySelectorAll("select.stores")) {
    const chosen = select.value || "default";
    select.replaceChildren(
      ...page.data.map((store) => el("option", { value: store.id }, nameOf(store))),
    );
    const known = page.data.some((store) => store.id === chosen);
    select.value = known ? chosen : (page.data[0]?.id ?? "");
  }
}

const nameOf = (store) => (store.name && store.name !== store.id ? `${store.name} (${store.id})` : store.id);
