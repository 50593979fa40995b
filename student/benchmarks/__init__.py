"""What `dtkd bench` measures of students: inference beside other programs, and what the loss costs a step."""
