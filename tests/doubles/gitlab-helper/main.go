// Command gitlab-runner-helper stands for the program of that name in GitLab's helper image, as far as a pipeline calls
// it: artifacts-uploader, artifacts-downloader, cache-archiver and cache-extractor, with the flags that the runner's
// scripts give (shells/abstract.go). As the real one it archives as zip with the files' modes, speaks to GitLab with the
// job's token in a header, fails for artifacts that match nothing, and only warns for a cache that does.
//
// Called dumb-init, it stands for that one, which the image has, too: `dumb-init -- COMMAND` has a child for the command,
// in a session of its own, and hands it the signals that it gets.
package main

import (
	"archive/zip"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"mime/multipart"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

type paths []string

func (p *paths) String() string         { return strings.Join(*p, ",") }
func (p *paths) Set(value string) error { *p = append(*p, value); return nil }

type options struct {
	url, token, id, file string
	paths                paths
}

func main() {
	commands := map[string]func(options) error{
		"artifacts-uploader":   upload,
		"artifacts-downloader": download,
		"cache-archiver":       archiveCache,
		"cache-extractor":      func(o options) error { return extract(o.file) },
	}
	if filepath.Base(os.Args[0]) == "dumb-init" {
		dumbInit(os.Args[2:])
	}
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fail(fmt.Errorf("no such command: %v", os.Args[1:]))
	}
	var given options
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	flags.StringVar(&given.url, "url", "", "GitLab")
	flags.StringVar(&given.token, "token", "", "of the job")
	flags.StringVar(&given.id, "id", "", "of the job")
	flags.StringVar(&given.file, "file", "", "the cache's archive")
	flags.Var(&given.paths, "path", "what to archive")
	flags.String("timeout", "", "in minutes")
	flags.String("artifact-format", "zip", "")
	flags.String("artifact-type", "archive", "")
	if err := flags.Parse(os.Args[2:]); err != nil {
		fail(err)
	}
	if err := commands[os.Args[1]](given); err != nil {
		fail(err)
	}
}

func dumbInit(command []string) {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	child := exec.Command(command[0], command[1:]...)
	child.Stdin, child.Stdout, child.Stderr = os.Stdin, os.Stdout, os.Stderr
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := child.Start(); err != nil {
		fail(err)
	}
	go func() {
		for each := range signals {
			_ = syscall.Kill(-child.Process.Pid, each.(syscall.Signal))
		}
	}()
	_ = child.Wait()
	os.Exit(child.ProcessState.ExitCode())
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "ERROR:", err)
	os.Exit(1)
}

func upload(o options) error {
	var archive bytes.Buffer
	if err := pack(&archive, o.paths); err != nil {
		return err
	}
	var body bytes.Buffer
	form := multipart.NewWriter(&body)
	part, err := form.CreateFormFile("file", "artifacts.zip")
	if err != nil {
		return err
	}
	if _, err := part.Write(archive.Bytes()); err != nil {
		return err
	}
	if err := form.Close(); err != nil {
		return err
	}
	address := fmt.Sprintf("%sapi/v4/jobs/%s/artifacts?artifact_format=zip&artifact_type=archive", o.url, o.id)
	_, err = ask(http.MethodPost, address, o.token, form.FormDataContentType(), &body, http.StatusCreated)
	return err
}

func download(o options) error {
	address := fmt.Sprintf("%sapi/v4/jobs/%s/artifacts?", o.url, o.id)
	body, err := ask(http.MethodGet, address, o.token, "", nil, http.StatusOK)
	if err != nil {
		return err
	}
	return unpack(body)
}

func ask(method, address, token, kind string, body io.Reader, wanted int) ([]byte, error) {
	request, err := http.NewRequest(method, address, body)
	if err != nil {
		return nil, err
	}
	request.Header.Set("JOB-TOKEN", token)
	if kind != "" {
		request.Header.Set("Content-Type", kind)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != wanted {
		err = fmt.Errorf("%s %s: %s", method, address, response.Status)
	}
	return answer, err
}

func archiveCache(o options) error {
	var archive bytes.Buffer
	if err := pack(&archive, o.paths); err != nil {
		fmt.Println("WARNING:", err)
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(o.file), 0o777); err != nil {
		return err
	}
	return os.WriteFile(o.file, archive.Bytes(), 0o666)
}

func extract(file string) error {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: no cache yet", file)
	}
	if err != nil {
		return err
	}
	return unpack(data)
}

func pack(into io.Writer, patterns []string) error {
	archive := zip.NewWriter(into)
	found := 0
	add := func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if err != nil || !info.Mode().IsRegular() {
			return err
		}
		header, err := zip.FileInfoHeader(info)
		if err != nil {
			return err
		}
		header.Name, header.Method = filepath.ToSlash(path), zip.Deflate
		part, err := archive.CreateHeader(header)
		if err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		found++
		_, err = part.Write(data)
		return err
	}
	for _, pattern := range patterns {
		matches, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, match := range matches {
			if err := filepath.WalkDir(match, add); err != nil {
				return err
			}
		}
		fmt.Printf("%s: found %d matching artifact files\n", pattern, found)
	}
	if found == 0 {
		return errors.New("no files to upload")
	}
	return archive.Close()
}

func unpack(data []byte) error {
	archive, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return err
	}
	for _, file := range archive.File {
		if !filepath.IsLocal(file.Name) {
			return fmt.Errorf("%s leads out of the project", file.Name)
		}
		if err := os.MkdirAll(filepath.Dir(file.Name), 0o777); err != nil {
			return err
		}
		if err := unpackFile(file); err != nil {
			return err
		}
	}
	return nil
}

func unpackFile(file *zip.File) error {
	reader, err := file.Open()
	if err != nil {
		return err
	}
	defer reader.Close()
	target, err := os.OpenFile(file.Name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, file.Mode().Perm())
	if err != nil {
		return err
	}
	if _, err := io.Copy(target, reader); err != nil {
		return err
	}
	if err := target.Close(); err != nil {
		return err
	}
	if err := os.Chmod(file.Name, file.Mode().Perm()); err != nil {
		return err
	}
	return os.Chtimes(file.Name, file.Modified, file.Modified)
}
