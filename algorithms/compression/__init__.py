"""What is sent in place of vectors, and how it is averaged."""
