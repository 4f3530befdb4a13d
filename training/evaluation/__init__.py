"""How good a checkpoint is: retrieval, labelled pictures, regions, public benchmarks, and the page that shows it."""
