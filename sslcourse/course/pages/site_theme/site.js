// Opened from disk, a page may not read another one, so that the search can name the pages it has found but not quote them.
if (location.protocol === "file:") {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
}

// Printed sentences are wrapped; printed tables, whose lines are shorter, keep their columns and scroll where there is no room.
document.addEventListener("DOMContentLoaded", () => {
  for (const box of document.querySelectorAll(".cell_output .output.stream pre")) {
    if (box.textContent.split("\n").some((line) => line.length > 110)) box.style.whiteSpace = "pre-wrap";
  }
});
