"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const root = document.documentElement;

  // Colours: what the reader chose, kept where the browser allows it for a file.
  const themes = document.querySelector(".theme");
  const store = {
    get() { try { return localStorage.getItem("repro-theme") || "auto"; } catch { return "auto"; } },
    set(value) { try { localStorage.setItem("repro-theme", value); } catch { /* a private window keeps nothing */ } },
  };
  const paint = (theme) => {
    if (theme === "auto") delete root.dataset.theme; else root.dataset.theme = theme;
    all("button", themes).forEach((b) => b.setAttribute("aria-pressed", String(b.dataset.themeChoice === theme)));
  };
  themes.hidden = false;
  paint(store.get());
  themes.addEventListener("click", (event) => {
    const theme = event.target.dataset.themeChoice;
    if (theme) { store.set(theme); paint(theme); }
  });

  // A number opens its runs in place; the section moves into the dialog and back, so its ids stay unique.
  const viewer = document.getElementById("viewer");
  const body = viewer.querySelector(".body");
  let home = null;
  const putBack = () => {
    const section = body.firstElementChild;
    if (section && home) { home.replaceWith(section); }
    home = null;
  };
  all("a[data-cell]").forEach((link) => link.addEventListener("click", (event) => {
    if (event.metaKey || event.ctrlKey || event.shiftKey) return;
    event.preventDefault();
    putBack();
    const section = document.getElementById(link.hash.slice(1));
    home = document.createComment("");
    section.replaceWith(home);
    body.append(section);
    viewer.setAttribute("aria-label", section.getAttribute("aria-label"));
    viewer.showModal();
    viewer.scrollTop = 0;
  }));
  viewer.addEventListener("close", putBack);
  viewer.querySelector(".close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });

  all("[data-copy]").forEach((button) => {
    if (!navigator.clipboard) return;
    button.hidden = false;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(button.previousElementSibling.textContent);
      button.textContent = "copied";
      setTimeout(() => { button.textContent = "copy"; }, 1500);
    });
  });

  // Sorting: by our mean in a column, blanks last; a third click brings back the paper's order.
  const sortTable = (table, column, direction) => {
    const rows = all("tbody tr", table);
    const value = (row) => {
      const cell = all("td", row).find((td) => td.dataset.column === column);
      return cell && cell.dataset.order !== undefined ? Number(cell.dataset.order) : null;
    };
    rows.sort((a, b) => {
      const place = Number(a.dataset.place) - Number(b.dataset.place);
      if (direction === "none") return place;
      const [x, y] = [value(a), value(b)];
      if (x === null || y === null) return (x === null) - (y === null) || place;
      return (direction === "descending" ? y - x : x - y) || place;
    });
    table.querySelector("tbody").append(...rows);
    all("thead th[aria-sort]", table).forEach((th) => {
      th.setAttribute("aria-sort", th.querySelector("button").dataset.sort === column ? direction : "none");
    });
  };
  const next = { none: "descending", descending: "ascending", ascending: "none" };
  all("[data-sort]").forEach((button) => button.addEventListener("click", () => {
    const th = button.closest("th");
    sortTable(button.closest("table"), button.dataset.sort, next[th.getAttribute("aria-sort")]);
  }));

  // Filtering: rows by loss, cells by network and state.
  const filters = document.querySelector(".filters");
  const fields = filters.elements;
  const apply = () => {
    const loss = fields.loss.value.trim().toLowerCase();
    let shown = 0;
    all(".table tbody tr").forEach((row) => {
      let any = false;
      all("td", row).forEach((cell) => {
        const here = (!fields.network.value || cell.dataset.column === fields.network.value)
          && (!fields.state.value || cell.dataset.state === fields.state.value)
          && (!fields.verdict || !fields.verdict.value || cell.dataset.verdict === fields.verdict.value);
        cell.classList.toggle("faded", !here);
        any = any || here;
        shown += here && row.dataset.loss.toLowerCase().includes(loss) ? 1 : 0;
      });
      row.hidden = !any || !row.dataset.loss.toLowerCase().includes(loss);
    });
    const active = loss || fields.network.value || fields.state.value || (fields.verdict && fields.verdict.value);
    // What a filter finds in a folded table would not be seen.
    if (active) all(".table details.empty").forEach((folded) => { folded.open = true; });
    filters.querySelector("output").value = active ? `${shown} cell${shown === 1 ? "" : "s"}` : "";
  };
  filters.hidden = false;
  filters.addEventListener("submit", (event) => event.preventDefault());
  for (const happened of ["input", "change"]) filters.addEventListener(happened, apply);
  filters.addEventListener("reset", () => setTimeout(() => {
    apply();
    all(".table table").forEach((table) => sortTable(table, "", "none"));
  }));
  fields.sort.addEventListener("change", () => all(".table table").forEach(
    (table) => sortTable(table, fields.sort.value, fields.sort.value ? "descending" : "none")));
})();
