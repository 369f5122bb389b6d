"""The best mesh of data, tensor and pipeline parallelism for 70B parameters on 512 devices."""
