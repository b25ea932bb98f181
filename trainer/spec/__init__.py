"""Job specs and prompt sets: typed, complete, and checked without torch."""
