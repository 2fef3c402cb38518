"""What `training.train` is made of: the task, the loop, the directory of a run and the file that it leaves behind."""
