"""Large batches against local steps, at equal communication."""
