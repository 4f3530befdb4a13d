"""Quality of a checkpoint: retrieval, labelled pictures, regions, public benchmarks, and the page that shows it."""
