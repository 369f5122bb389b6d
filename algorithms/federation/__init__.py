"""The clients of federated learning, and what they and their server send each other."""
