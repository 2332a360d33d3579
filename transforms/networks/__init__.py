"""Small networks: published weights made into ONNX by our own code, and run on one thread."""
