"""What trains and schedules: the bodies of `repro run`, `train` and `probe`."""
