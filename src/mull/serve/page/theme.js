// Runs before the page is drawn, so that a chosen theme does not flash in late.
try {
  const chosen = localStorage.getItem("mull.theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch { /* a browser that keeps nothing follows the system */ }
