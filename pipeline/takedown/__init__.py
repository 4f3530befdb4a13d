"""What is taken out of builds and STORE: takedowns and garbage."""
