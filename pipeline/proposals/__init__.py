"""Training of the detector `proposals`: composite pictures with known boxes, a small net, and the loop that trains it.

    python -m pipeline.proposals train --out FILE.onnx     corpus, training and export; about an hour of one CPU
    python -m pipeline.proposals draw --out FOLDER         some of the pictures that it learns from, with their boxes

No other package of the pipeline imports this one: the detector reads the .onnx file, and torch is needed only to make
new weights. It is here and not in `training`, since it belongs to a stage of the pipeline.
"""
