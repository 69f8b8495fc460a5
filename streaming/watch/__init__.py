"""What a run tells of itself. Reading order: meter > telemetry > outlets > endpoints | pulse."""
