"""De-identification of whole DICOM files, after PS3.15 Annex E: headers, pixels, faces, and the books about it."""
