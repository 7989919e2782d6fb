"use strict";
const table = document.getElementById("rows");
if (table) {
  const rows = [...table.tBodies[0].rows];
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const [search, status, error] = ["search", "status", "error"].map((id) => document.getElementById(id));
  const shown = document.getElementById("shown");
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    rows.forEach((row, index) => {
      const fits = (!status.value || row.dataset.status === status.value)
        && (!error.value || row.dataset.error === error.value)
        && words.every((word) => texts[index].includes(word));
      row.hidden = !fits;
      count += fits;
    });
    shown.textContent = count.toLocaleString("en");
  };
  for (const field of [search, status, error]) field.addEventListener("input", filter);
  document.getElementById("filters").hidden = false;
  filter();
}
