"""The network: topologies, the plans of collectives, and the flows that carry them out."""
