// Tables that sort by a click or Enter on a heading, and images that open large, with arrow keys to the next one.
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const body = table.tBodies[0];
  const key = (row, at) => {
    const cell = row.cells[at];
    const value = cell.dataset.value ?? cell.textContent.trim();
    return value === "" ? null : Number.isNaN(Number(value)) ? value : Number(value);
  };
  const compare = (a, b) => {
    if (a === null || b === null) return (a === null) - (b === null);
    if (typeof a === typeof b && typeof a === "number") return a - b;
    return String(a).localeCompare(String(b), undefined, { numeric: true });
  };
  [...table.tHead.rows[0].cells].forEach((heading, at) => {
    const button = heading.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const first = heading.classList.contains("n") ? "descending" : "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      const order = heading.getAttribute("aria-sort") === first ? other : first;
      for (const each of table.tHead.rows[0].cells) each.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const missing = (row) => key(row, at) === null;
      const rows = [...body.rows].sort((a, b) =>
        missing(a) || missing(b) ? missing(a) - missing(b) : sign * compare(key(a, at), key(b, at)));
      body.append(...rows);
    });
  });
}

const dialog = document.querySelector("dialog.large");
if (dialog) {
  const buttons = [...document.querySelectorAll(".gallery button")];
  const image = dialog.querySelector("img");
  const text = dialog.querySelector("p");
  let at = 0;
  const show = (index) => {
    at = (index + buttons.length) % buttons.length;
    const source = buttons[at].querySelector("img");
    image.src = source.src;
    image.alt = source.alt;
    image.classList.toggle("small", source.classList.contains("small"));
    text.textContent = buttons[at].closest("figure").querySelector("figcaption").innerText;
  };
  buttons.forEach((button, index) => button.addEventListener("click", () => { show(index); dialog.showModal(); }));
  dialog.querySelector(".previous").addEventListener("click", () => show(at - 1));
  dialog.querySelector(".next").addEventListener("click", () => show(at + 1));
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") show(at - 1);
    if (event.key === "ArrowRight") show(at + 1);
  });
  dialog.addEventListener("close", () => buttons[at].focus());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
}
