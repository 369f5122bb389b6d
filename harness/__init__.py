"""The harness: composes an Algorithm, a Problem and a Hardware; measures, records and compares."""
