"""Where samples come from: sample files (`archive`), or Kafka topics (`kafka`)."""
