"""The pictures of the page, one file a subject; each is inline SVG there, and with --pictures also files."""
