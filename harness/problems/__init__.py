"""Problems: what is minimised, on which data."""
