"""Other engines that write the traces of the plain model: an OpenAI-compatible server, or vLLM in this process."""
