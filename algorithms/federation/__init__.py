"""The clients of federated learning."""
