"""Hogwild! across sockets: shared models collapse, replicas of each socket do not."""
