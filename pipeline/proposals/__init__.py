"""How the weights of the detector `proposals` are made: pictures with known boxes, a small net, and its training.

    python -m pipeline.proposals train --out FILE.onnx     corpus, training and export; about half an hour of one CPU
    python -m pipeline.proposals draw --out FOLDER         some of the pictures it learns from, with their boxes

Nothing of the pipeline imports this package: the detector reads the .onnx file, and only who makes new weights needs
torch. It lies here and not in `training`, since it belongs to a stage of the pipeline.
"""
