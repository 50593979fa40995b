"""What `dtkd bench` measures of stage one."""
