"use strict";
(() => {
  const list = document.getElementById("list");
  if (list) {
    const body = list.tBodies[0];
    const heads = [...list.tHead.rows[0].cells];
    const key = (row, at) => {
      const cell = row.cells[at];
      const value = cell.dataset.v;
      return value === undefined ? cell.textContent.trim().toLowerCase() : Number(value);
    };
    heads.forEach((head, at) => {
      head.querySelector("button").addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const sign = down ? -1 : 1;
        const rows = [...body.rows].map((row) => [key(row, at), row]);
        rows.sort(([a], [b]) => (a < b ? -sign : a > b ? sign : 0));
        body.append(...rows.map(([, row]) => row));
      });
    });
    const filter = document.getElementById("filter");
    const state = document.getElementById("state");
    const shown = document.getElementById("shown");
    const apply = () => {
      const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      for (const row of body.rows) {
        const text = row.textContent.toLowerCase();
        const fits =
          words.every((word) => text.includes(word)) &&
          (!state.value || row.dataset.state === state.value);
        row.hidden = !fits;
        row.style.display = fits ? "" : "none";
        count += fits ? 1 : 0;
      }
      shown.textContent = `${count} of ${body.rows.length} shown`;
    };
    filter.addEventListener("input", apply);
    state.addEventListener("change", apply);
  }
  for (const button of document.querySelectorAll("button.copy")) {
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(button.dataset.copy);
        button.textContent = "Copied";
      } catch {
        const text = button.parentElement.querySelector("code, pre");
        getSelection().selectAllChildren(text);
        button.textContent = "Selected";
      }
      setTimeout(() => (button.textContent = "Copy"), 1500);
    });
  }
  const reveal = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target instanceof HTMLDetailsElement) {
      for (let one = target; one; one = one.parentElement.closest("details")) one.open = true;
      target.scrollIntoView();
    }
  };
  addEventListener("hashchange", reveal);
  reveal();
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    closed.forEach((one) => (one.open = true));
  });
  addEventListener("afterprint", () => closed.forEach((one) => (one.open = false)));
})();
