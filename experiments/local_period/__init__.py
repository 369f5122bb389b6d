"""The best period of local SGD, by bandwidth."""
