"""The embedded llama.cpp: a child process, its supervisor, and the models it can run."""
