"""A stand-in for Google Cloud KMS: `google.cloud.kms.v1.KeyManagementService` on loopback."""
