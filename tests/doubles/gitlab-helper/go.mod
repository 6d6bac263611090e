module flox.test/gitlab-helper

go 1.24.0
