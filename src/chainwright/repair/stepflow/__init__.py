"""StepFlow: attention between segments and steps is steered while decoding."""
