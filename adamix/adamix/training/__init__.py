"""What `adamix.training.train` is made of: the task, the loop, the run's directory and the file that it leaves behind."""
