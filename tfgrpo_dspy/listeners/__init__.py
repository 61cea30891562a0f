"""What is shown and told while a run goes on: bar, events, evaluations."""
