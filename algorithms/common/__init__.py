"""What many algorithms use."""
