# All images in one build, so that their stages run side by side and each runs once:
#
#   docker buildx bake --file deploy/bake.hcl
#
# `make images` does that and checks the sizes.

variable "TAG" { default = "dev" }
variable "REVISION" { default = "unknown" }
variable "SOURCE_DATE_EPOCH" { default = "0" }

group "default" {
  targets = ["image"]
}

target "image" {
  name       = name
  matrix     = { name = ["gateway", "token-vault", "identity", "runner", "sandbox", "tools"] }
  dockerfile = "deploy/Dockerfile"
  target     = name
  tags       = ["interlock/${name}:${TAG}"]
  args = {
    REVISION          = REVISION
    SOURCE_DATE_EPOCH = SOURCE_DATE_EPOCH
  }
}
