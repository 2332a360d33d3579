"""Scans: DICOM and NIfTI files to arrays with their geometry, de-identified, windowed and cut."""
