"""The command line: one file per verb. The only place that reads arguments and environment variables."""
