// Opened from disk, a page may not read another one, so that the search can name the pages it has found but not quote them.
if (location.protocol === "file:") {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
}
