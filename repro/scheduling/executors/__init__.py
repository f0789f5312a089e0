"""Ways of launching `repro train`, one class a file, all with the words of `base.Executor`."""
