"""The StepFlow paper, measured again."""
