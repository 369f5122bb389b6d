"""Parameter servers, and how servers answer."""
