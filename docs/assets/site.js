// The names of the columns for the cells of tables that a phone shows as cards.
document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll("article table:not([class])")) {
    const heads = [...table.querySelectorAll("thead th")].map((head) => head.textContent.trim());
    for (const row of table.querySelectorAll("tbody tr")) {
      [...row.cells].forEach((cell, place) => {
        if (place && heads[place]) cell.dataset.label = heads[place];
      });
    }
  }
});

// The filter of the gallery. It needs no server and no other script.
document.addEventListener("DOMContentLoaded", () => {
  const family = document.getElementById("lo-family");
  const word = document.getElementById("lo-word");
  if (!family || !word) return;
  const rows = [...document.querySelectorAll(".lo-gallery tbody tr")];
  const filter = () => {
    const typed = word.value.trim().toLowerCase();
    for (const row of rows) {
      const fits = !family.value || row.cells[2].textContent.trim() === family.value;
      row.hidden = !(fits && row.textContent.toLowerCase().includes(typed));
      row.style.display = row.hidden ? "none" : ""; // a card on a phone is a block, which `hidden` does not hide
    }
    for (const table of document.querySelectorAll(".lo-gallery")) {
      const empty = [...table.querySelectorAll("tbody tr")].every((row) => row.hidden);
      table.style.display = empty ? "none" : "";
      const heading = table.previousElementSibling;
      if (heading) heading.style.display = empty ? "none" : "";
    }
    const shown = rows.filter((row) => !row.hidden).length;
    document.getElementById("lo-count").textContent = `${shown} of ${rows.length} methods`;
  };
  family.addEventListener("change", filter);
  word.addEventListener("input", filter);
  filter();
});
