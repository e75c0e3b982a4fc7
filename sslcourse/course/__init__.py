"""The course's own machinery: lessons, exercises, explorers and headless runs. The library never imports it."""
