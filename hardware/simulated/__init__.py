"""A modelled machine or cluster: real values in virtual time."""
