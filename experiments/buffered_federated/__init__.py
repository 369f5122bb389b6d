"""FedBuff against FedAvg, on devices of different speeds."""
